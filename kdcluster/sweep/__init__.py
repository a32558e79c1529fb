"""Search better settings of the student: points of a space, tried by ordinary runs through Ray Tune."""
