"""Planning: from a tape to programs, one per class of parameters, and where their memory lies."""
