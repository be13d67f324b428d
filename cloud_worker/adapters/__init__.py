"""The only users of TensorFlow, LiteRT, the model repository and the model process."""
