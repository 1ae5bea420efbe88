"""The controller, put together; and what it does by itself while it runs."""
