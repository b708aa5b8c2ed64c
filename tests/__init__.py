"""The tests of dicomslide."""
