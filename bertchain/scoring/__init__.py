"""What a score is made of: ranks of labels, weights of rows, scores of users."""
