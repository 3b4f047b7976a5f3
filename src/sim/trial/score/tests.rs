//! Scores of runs made by hand.
