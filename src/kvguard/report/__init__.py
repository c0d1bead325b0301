"""Drawing and laying out of what tables hold."""
