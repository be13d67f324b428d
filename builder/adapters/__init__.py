"""Files, TensorFlow, LiteRT and pictures; foreign errors are translated here."""
