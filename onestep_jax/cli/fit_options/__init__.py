"""Groups of options of `onestep fit`."""
