"""Tests of app/kafka, most of them with a real Kafka."""
