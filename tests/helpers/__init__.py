"""What tests of several stories share."""
