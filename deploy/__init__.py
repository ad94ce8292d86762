"""Several replicas of a model on Ray Serve, with the page in front of them."""
