"""Drawing candidates for a preference data set and rating them in the browser."""
