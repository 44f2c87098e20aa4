"""What the tools for a data set of one's own are made of."""
