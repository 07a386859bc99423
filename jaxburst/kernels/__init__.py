"""What a network computes, written the way that is fast for a shape and a platform."""
