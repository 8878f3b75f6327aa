"""Rain and snow laid over clean photographs: pure functions of image, parameters and chance."""
