"""Annotations: bulk annotations as columns in slide millimetres, regions around graphics."""
