"""What the commands of `python -m gradchain` say."""
