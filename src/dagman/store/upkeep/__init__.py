"""Looking after a store that is there: is it whole, what is in it, merging several, and taking a patient out."""
