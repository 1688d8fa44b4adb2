"""Builds the report page: tables, figures and a grid of images from run folders."""
