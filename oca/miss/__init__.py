"""What a box does about content that it does not hold."""
