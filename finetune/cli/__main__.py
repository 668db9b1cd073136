from finetune.cli.main import main

if __name__ == "__main__":  # not in worker processes
    main()
