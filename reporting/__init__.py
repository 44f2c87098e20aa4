"""Printed metrics, reports and explanations."""
