"""poptorch.DataLoader and poptorch.AsynchronousDataAccessor."""
