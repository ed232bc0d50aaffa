"""Train and audit every network of a matrix, one record out."""
