"""The main job, end to end, in the terminal: `python -m examples.translation.demo`."""
