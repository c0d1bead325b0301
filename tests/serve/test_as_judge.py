from kvguard.studies.instructions.examples import Example, Instruction
from kvguard.studies.instructions.judge import make_judge


def test_the_server_can_be_the_judge_of_the_instructions_study(server, tmp_path):
    told = Instruction("style:formal", {}, "Write formally.")
    example = Example("1", "own", "Write a letter. Write formally.", (told,))
    model = server.client().models.list().data[0].id
    judge = make_judge(f"{server.base}/v1", model=model, folder=tmp_path)
    verdict = judge.judge(example, told, "Dear Sir,")
    again = judge.judge(example, told, "Dear Sir,")
    assert verdict == again
    assert judge.counts["called"] == judge.counts["cached"] == 1
    said = judge.counts["yes"] + judge.counts["no"] + judge.counts["nonsense"]
    assert said == 2  # a small model says what it likes; the endpoint does not fail
    assert (verdict is None) == (judge.counts["nonsense"] == 2)
