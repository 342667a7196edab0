"""What happens is an event; how it looks is a sink's job."""
