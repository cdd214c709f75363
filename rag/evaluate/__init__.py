"""Evaluation: answer a set's questions, score the predictions, report figures with intervals.

    dataset.py   a folder -> questions, their answers and what is relevant
    score.py     a question and a prediction -> a row of scores
    metrics.py   ranking metrics, answer containment, bootstrap intervals, paired tests
    report.py    rows -> figures; saved, loaded, compared and drawn
    run.py       a set's corpus and a pipeline -> predictions

Only `run` knows how an answer is found: any function from a question to a `Prediction` can be
evaluated and compared.
"""
