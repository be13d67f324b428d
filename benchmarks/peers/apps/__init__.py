"""One small file a peer, set up as its documentation recommends for lasting work."""
