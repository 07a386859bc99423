"""Networks and weights of others, read and written."""
