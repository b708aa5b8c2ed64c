"""Annotations: bulk annotations as columns in mm on the slide, and regions around graphics."""
