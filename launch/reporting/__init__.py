"""What the report page is made of: run folders in; figures, tables and a grid of images out."""
