"""Cards: formulas beside what they say of the objects on the screen."""
