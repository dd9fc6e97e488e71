"""One file a method; the folders are families for the eye."""
