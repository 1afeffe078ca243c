"""Control: generation that follows pictures, maps and layouts."""
