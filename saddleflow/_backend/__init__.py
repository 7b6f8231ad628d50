"""What the packages above rest on: checks of input, files, devices, compiled programs, linear algebra, meters."""
