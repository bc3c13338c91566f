"""Other people's doors: what was written for another library, read as gradchain's values."""
