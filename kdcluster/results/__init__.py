"""TensorBoard event files to the results table; never imports torch."""
