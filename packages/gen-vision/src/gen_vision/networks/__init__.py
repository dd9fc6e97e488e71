"""Networks that two methods share."""
