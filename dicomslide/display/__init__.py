"""What people see of a slide: pictures, tables, plots."""
