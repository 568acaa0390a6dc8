"""Host steps: which image stands where, and the processes that fill them."""
