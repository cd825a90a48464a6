"""Virtual time: the roles of an algorithm as they are, on nodes and links that take as long as was measured."""
