"""What only the lessons use: exercises, figures, the mathematics from scratch. The tool imports nothing from here."""
