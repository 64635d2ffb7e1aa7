"""Trees of proposed tokens."""

from drafters import chain

from pyllama.generation import ROOT, Tree


def branching():
    tree = Tree()
    a = tree.add(ROOT, 5, 0.6)
    b = tree.add(a, 6, 0.4)
    tree.add(ROOT, 7, 0.3)
    tree.add(a, 8, 0.2)
    tree.add(b, 9, 0.1)
    return tree


def test_a_token_proposed_twice_in_one_place_is_one_node():
    tree = branching()
    assert tree.add(0, 6, 0.9) == 1
    assert len(tree) == 5
    assert tree.probabilities[1] == 0.4


def test_paths_and_branches():
    tree = branching()
    assert tree.path(ROOT) == []
    assert tree.path(4) == [5, 6, 9]
    assert list(tree.branches()) == [[7], [5, 8], [5, 6, 9]]
    assert list(Tree().branches()) == []


def test_children_are_found_by_token():
    tree = branching()
    assert tree.child(ROOT, 7) == 2
    assert tree.child(0, 7) is None


def test_the_first_nodes_are_a_tree():
    assert list(branching().first(3).branches()) == [[5, 6], [7]]
    assert len(branching().first(99)) == 5


def test_the_best_branch_takes_the_first_child_of_each():
    assert list(branching().best_branch().branches()) == [[5, 6, 9]]
    assert list(chain([1, 2]).best_branch().branches()) == [[1, 2]]
    assert len(Tree().best_branch()) == 0
