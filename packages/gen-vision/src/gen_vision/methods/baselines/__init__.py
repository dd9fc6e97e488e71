"""What methods are compared with."""
