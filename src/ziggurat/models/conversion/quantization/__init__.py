"""Other programs' quantised weights, kept quantised: a file for each layout, and one table of
methods."""
