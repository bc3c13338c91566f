"""The main job, `python -m gradchain.demo`: a small network learns to read digits with a whole chain."""
