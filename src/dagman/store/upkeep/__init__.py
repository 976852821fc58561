"""Looking after a store that is there: is it whole, what is in it, and taking a patient out."""
