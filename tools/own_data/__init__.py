"""Parts of the tools that make and check a data set."""
