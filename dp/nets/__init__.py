"""Network definitions: written from the maths and the public state-dict layouts; they import nothing of dp."""
