"""The refinement itself: numpy, OpenCV, torch; knows no web and no files of data sets."""
