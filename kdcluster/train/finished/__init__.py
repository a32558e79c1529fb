"""What is made of a finished run: exports, its accuracy on other images, its cost.

Nothing here trains, and `files.trainer_code` leaves it out: a change of it makes no run one of other code.
"""
